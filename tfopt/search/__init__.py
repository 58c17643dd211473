"""The best of all techniques under a budget."""

from tfopt.search.front import Point, SearchResult
from tfopt.search.optimize import optimize
from tfopt.search.search import search
from tfopt.search.shipping import Optimized

__all__ = ["Optimized", "Point", "SearchResult", "optimize", "search"]
