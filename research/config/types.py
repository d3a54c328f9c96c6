"""Names for the numbers in a config: int and float to Python, each within its RANGES."""

PositiveInt = int  # at least 1; what is counted also becomes an index, of 32 bits
NonNegativeInt = int  # at least 0
Seed = int  # from 0 to below 2^32: jax.random.key takes no more bits, and would repeat seeds
ScannedLayers = int  # from 1 to 1,024; of one kind, in a loop
UnrolledLayers = int  # from 1 to 256: each layer is traced by itself
Positive = float  # above 0
Parameters = float  # above 0; a network of more could only be described for minutes
NonNegative = float  # at least 0
UnitInterval = float  # 0 <= x < 1
OpenUnit = float  # 0 < x < 1

# kind -> (type, lowest, lowest allowed itself?, bound above, in words)
RANGES: dict[str, tuple[type, float, bool, float, str]] = {
    "PositiveInt": (int, 1, True, 2**31, "a whole number of at least 1"),
    "NonNegativeInt": (int, 0, True, 2**53, "a whole number of at least 0"),
    "Seed": (int, 0, True, 2**32, "a whole number from 0 to below 2^32"),
    # More could only be traced for hours.
    "ScannedLayers": (int, 1, True, 1025, "a whole number from 1 to 1,024"),
    "UnrolledLayers": (int, 1, True, 257, "a whole number from 1 to 256"),
    "int": (int, -(2**53), True, 2**53, "a whole number"),
    "Positive": (float, 0, False, float("inf"), "a finite number above 0"),
    "Parameters": (float, 0, False, 1e13, "a number above 0 and below 1e13"),
    "NonNegative": (float, 0, True, float("inf"), "a finite number of at least 0"),
    "UnitInterval": (float, 0, True, 1, "a number from 0 to below 1"),
    "OpenUnit": (float, 0, False, 1, "a number between 0 and 1"),
    "float": (float, float("-inf"), False, float("inf"), "a finite number"),
}
