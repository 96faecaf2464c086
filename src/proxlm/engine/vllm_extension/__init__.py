"""What a vLLM server may be started with; it runs in vLLM's environment, without proxlm."""
