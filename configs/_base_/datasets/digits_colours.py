# Mean and standard deviation of the 1,437 training digits of scikit-learn at 32 pixels.
mean = [79.63, 79.63, 79.63]
std = [90.80, 90.80, 90.80]
