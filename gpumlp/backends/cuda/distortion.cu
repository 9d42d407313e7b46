// The rows of a batch as distorted images, see backends/distortion.py.

// The constants of distortion.py
#define PLACES 256  // between two pixels
#define MIDDLE (255 * 8 * 4096)

// The places of the pixels of an image by its affine map: place[axis][0][row] + place[axis][1][column], in the rows for
// axis 0 and in the columns for axis 1, as `affine` in distortion.py has them. `words` are the random bits.
__device__ void affine_places(const uint64* words, const int* sizes, double rotation, double scaling, double shear,
                              const double* shifts, float* places)
{
    double uniform[6], sine, cosine;
#pragma unroll
    for (int k = 0; k < 6; k++)
        uniform[k] = (unsigned)(words[k / 2] >> k % 2 * 32) * (1 / 2147483648.0) - 1;
    sincospi(uniform[0] * rotation, &sine, &cosine);
    double height = uniform[1] * scaling + 1, width = uniform[2] * scaling + 1, slant = uniform[3] * shear;
    double inverse[2][2] = {{cosine / height, sine / height * -1},
                            {(sine - slant * cosine) / width, (cosine + slant * sine) / width}};
    for (int axis = 0; axis < 2; axis++)
        for (int along = 0; along < 2; along++) {
            double origin = uniform[4 + along] * shifts[along] + (sizes[along] - 1) / 2.0;
            double start = along == 0 ? PLACES * ((sizes[axis] - 1) / 2.0 + 1) + 0.5 : 0;
            for (int k = threadIdx.x; k < sizes[along]; k += blockDim.x)
                places[k] = (float)(inverse[axis][along] * PLACES * (k - origin) + start);
            places += sizes[along];
        }
}

// A place in rows or columns, from the sum of the smoothed noise and the two numbers of the affine map
__device__ int place_of(int sum, float gain, float by_row, float by_column, int size)
{
    float place = __fadd_rn(__fmul_rn((float)(sum - MIDDLE), gain), __fadd_rn(by_row, by_column));
    return (int)min(max(place, 0.0f), (float)(PLACES * (size + 1)));
}

// What is between four neighbours
__device__ real blend(const unsigned char* corners, int down, int right, real scale)
{
    int left = corners[0] * (PLACES - down) + corners[2] * down;
    int other = corners[1] * (PLACES - down) + corners[3] * down;
    return (real)((left * (PLACES - right) + other * right + PLACES * PLACES / 2) >> 16) * scale;
}

__device__ real blend(const real* corners, int down, int right, real)
{
    real by_row = (real)down / PLACES, by_column = (real)right / PLACES;
    real left = corners[0] + (corners[2] - corners[0]) * by_row, other = corners[1] + (corners[3] - corners[1]) * by_row;
    return left + (other - left) * by_column;
}

// out[i] = the image source[rows[i]], distorted, times scale; see distortion.py. A block computes an image: it draws the
// noise, 2 x noise x noise bytes, sums it along columns, and then, for each pixel, along rows.
template <typename T>
__device__ void distort(const T* source, const int64* rows, const int64* numbers, int64 batch, int height, int width,
                        int noise, const int* by_row, const int* by_column, float gain_y, float gain_x, double rotation,
                        double scaling, double shear, double shift_y, double shift_x, uint64 seed, uint64 purpose,
                        const uint64* epoch, real scale, real* out)
{
    extern __shared__ float places[];
    unsigned short* halves = (unsigned short*)(places + 2 * (height + width));
    unsigned char* bytes = (unsigned char*)(halves + 2 * height * noise);
    const int sizes[2] = {height, width};
    const double shifts[2] = {shift_y, shift_x};
    int cells = 2 * noise * noise;
    for (int64 i = blockIdx.x; i < batch; i += gridDim.x) {
        __syncthreads();  // all have used the noise of the image before
        if ((int)threadIdx.x < max(height, width)) {
            uint64 words[4] = {1, (uint64)numbers[i], epoch[0], 0};
            philox(words, seed, purpose);
            affine_places(words, sizes, rotation, scaling, shear, shifts, places);
        }
        for (int start = 32 * threadIdx.x; start < cells; start += 32 * blockDim.x) {
            uint64 words[4] = {2 + (uint64)start / 32, (uint64)numbers[i], epoch[0], 0};
            philox(words, seed, purpose);
#pragma unroll
            for (int k = 0; k < 32; k++)
                if (start + k < cells)
                    bytes[start + k] = (unsigned char)(words[k / 8] >> k % 8 * 8);
        }
        __syncthreads();
        for (int k = threadIdx.x; k < 2 * height * noise; k += blockDim.x) {
            const unsigned char* column = bytes + k / (height * noise) * noise * noise + k % noise;
            const int* weights = by_row + k / noise % height * noise;
            int sum = 0;
#pragma unroll 4
            for (int m = 0; m < noise; m++)
                sum += weights[m] * column[m * noise];
            halves[k] = (unsigned short)((sum + 127 + (sum >> 8 & 1)) >> 8);  // to the nearest, of two the even one
        }
        __syncthreads();
        const T* image = source + rows[i] * height * width;
        for (int k = threadIdx.x; k < height * width; k += blockDim.x) {
            int y = k / width, x = k % width, sum_y = 0, sum_x = 0;
            const unsigned short* row = halves + y * noise;
#pragma unroll 4
            for (int m = 0; m < noise; m++) {
                int weight = by_column[m * width + x];
                sum_y += weight * row[m];
                sum_x += weight * row[height * noise + m];
            }
            const float* more = places + height + width;
            int at_y = place_of(sum_y, gain_y, places[y], places[height + x], height);
            int at_x = place_of(sum_x, gain_x, more[y], more[height + x], width);
            int above = at_y / PLACES - 1, before = at_x / PLACES - 1;  // of the upper left neighbour
            T corners[4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int v = above + c / 2, u = before + c % 2;
                corners[c] = v >= 0 && v < height && u >= 0 && u < width ? image[v * width + u] : (T)0;
            }
            out[i * height * width + k] = blend(corners, at_y % PLACES, at_x % PLACES, scale);
        }
    }
}

// out = distorted pixels, see `distort`
extern "C" __global__ void distort_pixels(const unsigned char* source, const int64* rows, const int64* numbers,
                                          int64 batch, int height, int width, int noise, const int* by_row,
                                          const int* by_column, float gain_y, float gain_x, double rotation,
                                          double scaling, double shear, double shift_y, double shift_x, uint64 seed,
                                          uint64 purpose, const uint64* epoch, real scale, const int64* position,
                                          real* out)
{
    int64 shift = position ? position[0] : 0;
    distort(source, rows + shift, numbers + shift, batch, height, width, noise, by_row, by_column, gain_y, gain_x,
            rotation, scaling, shear, shift_y, shift_x, seed, purpose, epoch, scale, out);
}

// out = distorted images of numbers, see `distort`
extern "C" __global__ void distort_rows(const real* source, const int64* rows, const int64* numbers, int64 batch,
                                        int height, int width, int noise, const int* by_row, const int* by_column,
                                        float gain_y, float gain_x, double rotation, double scaling, double shear,
                                        double shift_y, double shift_x, uint64 seed, uint64 purpose,
                                        const uint64* epoch, real scale, const int64* position, real* out)
{
    int64 shift = position ? position[0] : 0;
    distort(source, rows + shift, numbers + shift, batch, height, width, noise, by_row, by_column, gain_y, gain_x,
            rotation, scaling, shear, shift_y, shift_x, seed, purpose, epoch, scale, out);
}
