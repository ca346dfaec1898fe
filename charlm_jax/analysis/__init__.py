"""Analysis: turns texts and losses into numbers and figures."""
