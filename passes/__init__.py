"""Graph passes: exact removal of dead structure, lowering to fast operators, and number formats."""
