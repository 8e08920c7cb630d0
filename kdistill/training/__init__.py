"""Training of teachers and students.

`run` trains a network and writes it as an artifact, and `student_inputs` opens what students are trained from. Both use
`loop`, which trains from `training_rows` through a `feed` and writes a `checkpoint` per epoch. `steps` has the compiled
functions, with `losses`, `optimizers`, `dropout` and `xla`. `history` and `tensorboard` write the numbers of each epoch.
Nothing is re-exported here: most of these modules import TensorFlow, and `history` does not.
"""
