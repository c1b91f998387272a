"""Videos with what is to be said of them: readers of annotations, the filter, frames, order."""
