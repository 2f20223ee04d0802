"""`make soak`: mixed load with aborts, hostile requests and kills, for as long as one likes; says whether all held."""
