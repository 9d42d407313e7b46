// The rows of a batch, gathered from all samples; distortion.cu gathers distorted images.

// out[i, j] = source[rows[i], j] * scale, WIDTH columns at a time
template <typename T, int WIDTH>
__device__ void gather(const T* source, const int64* rows, int64 batch, int64 features, real scale, real* out)
{
    int64 count = features / WIDTH, across = threads_x();
    for (int64 i = global_y(); i < batch; i += threads_y()) {
        const Pack<T, WIDTH>* from = (const Pack<T, WIDTH>*)(source + rows[i] * features);
        Pack<real, WIDTH>* to = (Pack<real, WIDTH>*)(out + i * features);
        for (int64 first = global_x(); first < count; first += AT_ONCE * across) {
            Pack<T, WIDTH> read[AT_ONCE];
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++)
                read[r] = from[min(first + r * across, count - 1)];  // repeats the last one instead of branching
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                Pack<real, WIDTH> scaled;
                for (int k = 0; k < WIDTH; k++)
                    scaled.at[k] = (real)read[r].at[k] * scale;
                if (first + r * across < count)
                    to[first + r * across] = scaled;
            }
        }
    }
}

// out[i, j] = source[rows[i], j] * scale
extern "C" __global__ void gather_pixels(const unsigned char* source, const int64* rows, int64 batch, int64 features,
                                         real scale, int width, const int64* position, real* out)
{
    const int64* own = rows + (position ? position[0] : 0);
    if (width == 4)
        gather<unsigned char, 4>(source, own, batch, features, scale, out);
    else
        gather<unsigned char, 1>(source, own, batch, features, scale, out);
}

// out[i, j] = source[rows[i], j]
extern "C" __global__ void gather_rows(const real* source, const int64* rows, int64 batch, int64 features, int width,
                                       const int64* position, real* out)
{
    const int64* own = rows + (position ? position[0] : 0);
    if (width == 4)
        gather<real, 4>(source, own, batch, features, 1, out);
    else
        gather<real, 1>(source, own, batch, features, 1, out);
}
