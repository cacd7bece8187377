"""What ``report`` gathers: how networks do on the same images, milliseconds, example images, classes, the lineage."""
