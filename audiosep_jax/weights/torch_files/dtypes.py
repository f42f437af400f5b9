"""The number types of torch and their numpy equivalents."""

import ml_dtypes
import numpy as np

# torch's name of a type -> numpy's type, little-endian.
DTYPES = {
    'float64': np.dtype('<f8'),
    'float32': np.dtype('<f4'),
    'float16': np.dtype('<f2'),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
    'float8_e4m3fn': np.dtype(ml_dtypes.float8_e4m3fn),
    'float8_e4m3fnuz': np.dtype(ml_dtypes.float8_e4m3fnuz),
    'float8_e5m2': np.dtype(ml_dtypes.float8_e5m2),
    'float8_e5m2fnuz': np.dtype(ml_dtypes.float8_e5m2fnuz),
    'float8_e8m0fnu': np.dtype(ml_dtypes.float8_e8m0fnu),
    'int64': np.dtype('<i8'),
    'int32': np.dtype('<i4'),
    'int16': np.dtype('<i2'),
    'int8': np.dtype('i1'),
    'uint64': np.dtype('<u8'),
    'uint32': np.dtype('<u4'),
    'uint16': np.dtype('<u2'),
    'uint8': np.dtype('u1'),
    'bool': np.dtype('?'),
    'complex64': np.dtype('<c8'),
    'complex128': np.dtype('<c16'),
}
# The types that have a storage class. For the others, torch stores bytes and the type next to them.
STORAGES = {
    'DoubleStorage': 'float64',
    'FloatStorage': 'float32',
    'HalfStorage': 'float16',
    'BFloat16Storage': 'bfloat16',
    'LongStorage': 'int64',
    'IntStorage': 'int32',
    'ShortStorage': 'int16',
    'CharStorage': 'int8',
    'ByteStorage': 'uint8',
    'BoolStorage': 'bool',
    'ComplexFloatStorage': 'complex64',
    'ComplexDoubleStorage': 'complex128',
    'UntypedStorage': 'uint8',
}
# Integers with a scale, which is in the arguments of `_rebuild_qtensor`.
QUANTIZED_STORAGES = {
    'QInt8Storage': 'int8',
    'QUInt8Storage': 'uint8',
    'QInt32Storage': 'int32',
    'QUInt4x2Storage': 'uint8',
    'QUInt2x4Storage': 'uint8',
}
