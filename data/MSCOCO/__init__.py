"""COCO-WholeBody with MANO fits."""
