"""libFuzzer over the decoders of the core, its receiver and its sender, under sanitizers.

    python -m fuzz [--seconds N] [--corpus FOLDER] [target ...]     from this folder's parent

prints how often each ran, and ends with status 1 and the input that did it if anything is wrong.
"""
