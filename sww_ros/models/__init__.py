"""Loading checkpoints: any Qwen2-VL, Qwen2.5-VL or Qwen3-VL, and the built-in one."""
