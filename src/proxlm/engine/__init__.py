"""Generating tokens: the `Engine` protocol, the native engine behind it, and rollouts of single responses.

Where to find what: request.py what is asked and returned; protocol.py what an engine is; native.py the one in this
process; scheduler.py continuous batching, admission.py who joins, prefill.py what is read, stopping.py when a
request is finished; sampling.py where a token is sampled; uniforms.py its random number; kv_cache.py slots;
decoders.py the model's passes; generate.py prompts → rollout. Only this package uses the scheduler and the
decoders.
"""
