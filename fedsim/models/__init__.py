"""Models, one module a name. Every model is a `body` followed by a linear `head`.

A model's module holds a function of its own name, ``(input_shape, num_classes, *, options)``, with
``card=None, /`` before the options where it needs to know more of the data than that. It returns a
torch Module with the children `body` and `head` and ``forward = head(body(x))``, so that
methods that personalise or replace the head know it by name.
"""
