"""How long our backends and other engines take for the same forward passes, and how much memory ours need.

Each case (``cases``) has a process of its own (``children``), so that neither memory nor threads of one disturb the
next.  In it every engine (``engines``, ``peers``) gets the same synthetic weights and the same input, is held against
the first one, and is then timed in turns with the others (``timing``).
"""
