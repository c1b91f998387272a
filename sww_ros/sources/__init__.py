"""Where frames come from: videos, pictures and cameras, and the nodes that publish them."""
