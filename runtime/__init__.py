"""Run graphs: sessions and threads, the machine they run on, and proof that two graphs agree.

======================  ==========================================================================
``machine``             instructions, cores, container quota and memory of this machine
``threads``             how many threads to use here, and why
``providers``           execution providers: which can run, what to install for the rest
``sessions``            open a graph in ONNX Runtime
``executed_graph``      operators in a file, and in the graph that ONNX Runtime makes of it
``verification``        hard inputs, and a comparison of two graphs' outputs on them
``errors``              what a user can mend
======================  ==========================================================================

Nothing here imports the rest of ``compactor``. Import the modules by name: this package stays empty, so that
describing the machine loads neither numpy nor ONNX Runtime.
"""
