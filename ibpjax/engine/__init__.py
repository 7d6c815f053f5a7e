"""The passes over a program: on boxes, of linear functionals backward, of linear bounds forward."""
