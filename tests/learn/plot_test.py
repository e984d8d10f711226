#!/usr/bin/env python3
"""The comparison's words follow from its figures: "lower" only beyond the spread over seeds."""
import importlib.machinery
import importlib.util
import os
import unittest
import xml.etree.ElementTree

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "plot")
LOADER = importlib.machinery.SourceFileLoader("plot", PATH)
plot = importlib.util.module_from_spec(importlib.util.spec_from_loader("plot", LOADER))
LOADER.exec_module(plot)


def line(arm, test, seed, rate=0.1):
    return {"arm": arm, "rate": rate, "seed": seed, "test": test, "validation": test,
            "curve": [[100, 1.5, test + 1], [200, 3.0, test]]}


def arms(memory, plain):
    return plot.chosen([line("memory", t, i + 1) for i, t in enumerate(memory)] +
                       [line("plain", t, i + 1) for i, t in enumerate(plain)])


class Verdict(unittest.TestCase):
    def test_a_gap_beyond_the_spread_is_lower(self):
        self.assertIn("lower with", plot.verdict(arms([2.0, 2.01, 2.02], [2.1, 2.1, 2.11]), "plain"))

    def test_a_gap_within_the_spread_is_not(self):
        for memory, plain in (([2.0, 2.05, 2.1], [2.1, 2.1, 2.11]),  # the memory's seeds vary
                              ([2.0, 2.0, 2.0], [2.0, 2.1, 2.2])):   # the other's do
            words = plot.verdict(arms(memory, plain), "plain")
            self.assertIn("not separated at this scale", words)
            self.assertNotIn("lower", words)

    def test_worse_is_said_too(self):
        self.assertIn("higher with", plot.verdict(arms([2.2, 2.2, 2.2], [2.1, 2.1, 2.1]), "plain"))

    def test_two_seeds_decide_nothing(self):
        self.assertIn("no verdict", plot.verdict(arms([1.0, 1.0], [2.1, 2.1]), "plain"))

    def test_the_rate_is_chosen_by_validation(self):
        results = [line("memory", 2.0, 1, rate=0.1), line("memory", 1.9, 1, rate=0.2),
                   line("memory", 1.8, 2, rate=0.2)]
        self.assertEqual([l["rate"] for l in plot.chosen(results)["memory"]], [0.2, 0.2])

    def test_the_picture_is_well_formed(self):
        xml.etree.ElementTree.fromstring(plot.picture(
            arms([2.0, 2.1, 2.2], [2.0, 2.3, 2.4]), {"memory": 0.2, "plain": 0.1}))


if __name__ == "__main__":
    unittest.main()
