"""`stprune study`: where, why and by how much pruning makes training cheaper, against the control that matters."""
