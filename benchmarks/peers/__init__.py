"""hgt_infer and what it is compared with, behind one interface, each in a process of its own."""
