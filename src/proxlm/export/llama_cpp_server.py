"""llama.cpp's server in a process of its own: `python -m proxlm.export.llama_cpp_server FILE CONTEXT THREADS`.

It prints its address, and ends when its standard input closes, so that it never outlives who started it. A process of
its own, for llama.cpp aborts on a file that it cannot use.
"""

from __future__ import annotations

import sys


def main(file: str, context: int, threads: int) -> None:
    """Serve one model on this machine alone, with keys and values in float32 so that no rounding but the file's is in
    its numbers.
    """
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.n_parallel, settings.n_ctx = 1, context
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.fit_params = settings.ui = settings.warmup = False
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
