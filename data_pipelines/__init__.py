"""From audio files to batches: corpora → shards → loader.

``python -m data_pipelines --help`` lists the commands. Nothing is imported here, so that the
command line starts at once.
"""
