"""Loading checkpoints: any Qwen2.5-VL folder or hub id, and the built-in one."""
