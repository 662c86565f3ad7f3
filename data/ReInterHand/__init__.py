"""Re:InterHand."""
