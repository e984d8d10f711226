/* Batch norm's loops over [rows][width] (nn_cpu.h); sums over rows in double precision. */
#include <math.h>

#include "nn_cpu.h"

#define NORM_EPS      1e-5
#define NORM_MOMENTUM 0.1

MN_CLONES void mn_nn_column_sums(uint64_t rows, uint32_t width, const mn_real *x, double *out_sums)
{
    for (uint32_t c = 0; c < width; c++)
        out_sums[c] = 0;
    for (uint64_t row = 0; row < rows; row++, x += width)
        for (uint32_t c = 0; c < width; c++)
            out_sums[c] += (double)x[c];
}

MN_CLONES void mn_nn_column_squares(uint64_t rows, uint32_t width, const mn_real *x,
                                    const mn_real *mean, double *out_sums)
{
    for (uint32_t c = 0; c < width; c++)
        out_sums[c] = 0;
    for (uint64_t row = 0; row < rows; row++, x += width)
        for (uint32_t c = 0; c < width; c++) {
            mn_real centred = x[c] - mean[c];
            out_sums[c] += (double)centred * (double)centred;
        }
}

void mn_nn_batch_mean(uint32_t width, double count, const double *sums, mn_real *out_mean)
{
    for (uint32_t c = 0; c < width; c++)
        out_mean[c] = (mn_real)(sums[c] / count);
}

void mn_nn_batch_variance(uint32_t width, double count, const double *squares, const mn_real *mean,
                          mn_real *out_inverse, mn_real *running)
{
    for (uint32_t c = 0; c < width; c++) {
        double unbiased = squares[c] / (count > 1 ? count - 1 : 1);
        out_inverse[c] = (mn_real)(1 / sqrt(squares[c] / count + NORM_EPS));
        running[c] += (mn_real)(NORM_MOMENTUM * ((double)mean[c] - (double)running[c]));
        running[width + c] += (mn_real)(NORM_MOMENTUM * (unbiased - (double)running[width + c]));
    }
}

void mn_nn_batch_running(uint32_t width, const mn_real *running, mn_real *out_mean,
                         mn_real *out_inverse)
{
    for (uint32_t c = 0; c < width; c++) {
        out_mean[c] = running[c];
        out_inverse[c] = (mn_real)(1 / sqrt((double)running[width + c] + NORM_EPS));
    }
}

MN_CLONES void mn_nn_batch_norm(const mn_batch_norm *norm, const mn_real *shift, mn_real *out)
{
    const mn_real *x = norm->x;
    uint32_t width = norm->width;
    for (uint64_t row = 0; row < norm->rows; row++, x += width, out += width)
        for (uint32_t c = 0; c < width; c++)
            out[c] = (x[c] - norm->mean[c]) * norm->inverse[c] * norm->gain[c] + shift[c];
}

MN_CLONES void mn_nn_batch_norm_sums(const mn_batch_norm *norm, const mn_real *d_out,
                                     double *out_sums)
{
    const mn_real *x = norm->x;
    uint32_t width = norm->width;
    for (uint32_t c = 0; c < 2 * width; c++)
        out_sums[c] = 0;
    for (uint64_t row = 0; row < norm->rows; row++, x += width, d_out += width)
        for (uint32_t c = 0; c < width; c++) {
            mn_real n = (x[c] - norm->mean[c]) * norm->inverse[c];
            out_sums[c] += (double)d_out[c];
            out_sums[width + c] += (double)(d_out[c] * n);
        }
}

MN_CLONES void mn_nn_batch_norm_grad(const mn_batch_norm *norm, double count, const double *sums,
                                     mn_real *d)
{
    const mn_real *x = norm->x;
    mn_real share = (mn_real)(1 / count);
    uint32_t width = norm->width;
    for (uint64_t row = 0; row < norm->rows; row++, x += width, d += width)
        for (uint32_t c = 0; c < width; c++) {
            mn_real n = (x[c] - norm->mean[c]) * norm->inverse[c];
            mn_real centred =
                d[c] - share * (mn_real)sums[c] - n * (share * (mn_real)sums[width + c]);
            d[c] = norm->gain[c] * norm->inverse[c] * centred;
        }
}

void mn_nn_add_sums(uint32_t n, const double *sums, mn_real *x)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] += (mn_real)sums[i];
}
