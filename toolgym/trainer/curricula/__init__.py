"""Curricula: which task the policy plays next. Seeded, stateful, resumable; the equations are in
``toolgym.algorithms``.

`base.Curriculum` is the contract, `shuffled.Shuffled` the default, `config.CurriculumConfig` what a recipe says.
"""
