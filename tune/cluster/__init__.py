"""Ray itself: a private one or a cluster's, its folders, its death, and trials as Tune holds them."""
