"""The stages: one module per subcommand, each with a function `run(workspace, settings, *, force, reporter)`.

`run` returns a result that the command line prints as a table or as JSON. Stages parse no options and never exit.
"""
