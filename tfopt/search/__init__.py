"""The best of all techniques under a budget."""

from tfopt.search.front import Point, SearchResult
from tfopt.search.search import search

__all__ = ["Point", "SearchResult", "search"]
