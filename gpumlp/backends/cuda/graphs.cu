// What only graphs use. The launch of set_position before a capture compiles this source.

extern "C" __global__ void set_position(int64* position, int64 samples, int64 slots, int64 steps)
{
    if (global_x() == 0) {
        position[0] = samples;
        position[1] = slots;
        position[2] = steps;
    }
}

// out = the rows of `source` at this position
extern "C" __global__ void load_rows(const unsigned char* source, int64 bytes, int64 row_bytes, const int64* position,
                                     unsigned char* out)
{
    for (int64 i = global_x(); i < bytes; i += threads_x())
        out[i] = source[position[0] * row_bytes + i];
}

// the rows of `out` at this position = source
extern "C" __global__ void store_rows(const unsigned char* source, int64 bytes, int64 row_bytes,
                                      const int64* position, unsigned char* out)
{
    for (int64 i = global_x(); i < bytes; i += threads_x())
        out[position[0] * row_bytes + i] = source[i];
}

// out = the factors of a step
extern "C" __global__ void load_factors(const real* factors, int count, int64 slot, const int64* position, real* out)
{
    for (int64 i = global_x(); i < count; i += threads_x())
        out[i] = factors_of(factors, count, slot, position)[i];
}
