"""The files that go with a model: opened by their own libraries, checked, and written for everybody."""
