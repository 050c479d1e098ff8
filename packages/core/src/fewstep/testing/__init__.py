"""Conformance suites for authors of plug-ins: subclass one in your tests and give it one fixture."""

from .kernel import KernelSuite as KernelSuite
from .method import Case as Case
from .method import MethodSuite as MethodSuite
