"""Pure: values in, values out.

Values are frozen dataclasses, here and elsewhere; but not those of which one or more are made for each message: frozen
ones take four times as long to make.
"""
