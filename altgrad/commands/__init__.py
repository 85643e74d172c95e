"""The commands, each in the module that its parser comes from, and what they share.

    train, branch, judge           the command of that name
    reports                        report, compare
    steering                       status, stop
    known_names                    formats, recipes, config
    applications                   sweep, explain, submit, dashboard, whose code is beside the library

Shared are parsers with errors of one line, the check of a folder, the extras of an installation, and webhooks.
"""
