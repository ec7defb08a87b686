"""Text generation inside the worker: requests that share steps, and join and leave between them.

`request` reads what is asked, `sampler` chooses tokens, `detokenizer` makes text of them, `batch`
holds the requests that are computed together, `decoder` is the model with its cache, `loop` ties
a batch to the worker's frames. All but `decoder` and `loop` are pure: the same calls give the
same answers, on any car.
"""
