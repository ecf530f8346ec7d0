"""Models, one module per name; most are a `body` followed by a linear `head`.

A model's module holds a function of its own name, ``(input_shape, num_classes, *, options)``, with
``card=None, /`` before the options if it depends on the data set's card. The function returns a
torch Module; `fedsim.params.protocol` lists the members by which it is trained, sent and scored
otherwise than a plain classifier. Methods that personalise or replace the head need the children
`body` and `head` with ``forward = head(body(x))``.
"""

from fedsim.models.blocks.body_head import BodyHead

__all__ = ["BodyHead"]
