"""lakerec: a clickstream in a lake, and a good top-K list for every user each morning."""

__version__ = "0.1.0"
