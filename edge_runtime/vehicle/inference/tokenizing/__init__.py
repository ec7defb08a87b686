"""From text to the token numbers of a model, as its `tokenizer.json` says.

Deliberately absent: the library `tokenizers`, which wrote those files and brings a hub's client
(41 MB in all). The tests hold what is here equal to it; `docs/adr/0004-small-install.md` says why.
"""
