"""Training of teachers and students.

`run` trains a network and writes it as an artifact, with `loop` and, for its parts, `training_rows`, `feed`, `steps`,
`losses`, `optimizers`, `dropout`, `xla` and `checkpoint`. `replicas` shares a training among devices and `workers`. `history` and
`tensorboard` write the numbers of each epoch. Nothing is re-exported here, since most of these modules import TensorFlow, and
`history` and `workers` do not.
"""
