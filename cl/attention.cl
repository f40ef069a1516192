/* Transposed attention: products of q and k summed over the pixels, the softmax, and the output projection on it.
 *
 * q, k (X_TYPE): channel c of pixel i of slice s at offset + c * plane + s * count + i; head h owns the channels h * c ...
 * (h + 1) * c - 1.
 * Sums of a head: c * c products (row: channel of q), then c squares of q, then c squares of k; the heads one
 * after the other, and so are the slices.
 *
 * attention_partial: the sums of CHUNK pixels each, into scratch[slice][chunk][heads][c * c + 2 c]. A work-group of
 *     LANES items shares TILE x TILE pairs of channels at a time; item l takes every LANES-th vector.
 *     Group id 1 is (row of tiles) * groups + g and takes the tiles g * span ... of that row; id 2 is
 *     (slice * chunks + chunk) * heads + head.
 * attention_total: adds the chunks up, in order. Global id 0 is a run of `run` sums, id 1 a slice.
 * attention_softmax: out[slice][h * c + i][j] of softmax over j of temperature[h] * QK_ij / (|q_i| |k_j|). Global
 *     id 0 is one of the `rows` rows.
 * attention_fold: out[slice][o][h * c + j] = sum over i of w[o][h * c + i] * softmax[slice][h * c + i][j], rows of heads * c.
 *     Global id 0 takes every get_global_size(0)-th vector of columns (CPUs start one work-item, others one for every
 *     column), id 1 is a row o, id 2 a slice. Any work-group that is 1 wide in ids 1 and 2. */
#ifndef LANES
#define LANES 1
#endif
#ifndef TILE
#define TILE 4
#endif
#ifndef CHUNK
#define CHUNK 1024
#endif

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1)))
void attention_partial(__global const X_TYPE *q, const int q_offset, const int q_plane,
                       __global const X_TYPE *k, const int k_offset, const int k_plane,
                       __global float *scratch, const int scratch_offset, const int c, const int heads,
                       const int count, const int groups, const int span)
{
#if LANES > 1
    __local float lanes[TILE * TILE][LANES + 1];
#endif
    const int lane = get_local_id(0);
    const int row = (int)get_group_id(1) / groups;
    const int group = (int)get_group_id(1) % groups;
    const int chunks = (count + CHUNK - 1) / CHUNK, part = (int)get_group_id(2) / heads;
    const int slice = part / chunks, chunk = part % chunks;
    const int head = (int)get_group_id(2) % heads;
    const int tiles = (c + TILE - 1) / TILE;
    const int n = min(CHUNK, count - chunk * CHUNK);
    q += q_offset + head * c * q_plane + slice * count + chunk * CHUNK;
    k += k_offset + head * c * k_plane + slice * count + chunk * CHUNK;
    scratch += scratch_offset + (part * heads + head) * (c * c + 2 * c);

    /* Channels past the last repeat it, and are not written. */
    __global const X_TYPE *from_q[TILE];
    __global const X_TYPE *from_k[TILE];
#pragma unroll
    for (int a = 0; a < TILE; a++) from_q[a] = q + min(row * TILE + a, c - 1) * q_plane;

    if (group == 0) {
        vec squares[2 * TILE];
#pragma unroll
        for (int a = 0; a < TILE; a++) {
            from_k[a] = k + min(row * TILE + a, c - 1) * k_plane;
            squares[a] = 0.0f;
            squares[TILE + a] = 0.0f;
        }
        for (int i = lane * VECTOR; i < n; i += LANES * VECTOR) {
#pragma unroll
            for (int a = 0; a < TILE; a++) {
                const vec u = vec_load_part(X_TYPE, from_q[a] + i, n - i);
                const vec v = vec_load_part(X_TYPE, from_k[a] + i, n - i);
                squares[a] += u * u;
                squares[TILE + a] += v * v;
            }
        }
#if LANES > 1
#pragma unroll
        for (int e = 0; e < 2 * TILE; e++) lanes[e][lane] = vec_sum(squares[e]);
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int e = lane; e < 2 * TILE; e += LANES) {
            float sum = 0.0f;
            for (int l = 0; l < LANES; l++) sum += lanes[e][l];
            if (row * TILE + e % TILE < c) scratch[c * c + e / TILE * c + row * TILE + e % TILE] = sum;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
#else
#pragma unroll
        for (int e = 0; e < 2 * TILE; e++)
            if (row * TILE + e % TILE < c)
                scratch[c * c + e / TILE * c + row * TILE + e % TILE] = vec_sum(squares[e]);
#endif
    }

    for (int column = group * span; column < min((group + 1) * span, tiles); column++) {
        vec sum[TILE * TILE];
#pragma unroll
        for (int e = 0; e < TILE * TILE; e++) sum[e] = 0.0f;
#pragma unroll
        for (int b = 0; b < TILE; b++) from_k[b] = k + min(column * TILE + b, c - 1) * k_plane;
        int i = lane * VECTOR;
        for (; i + VECTOR <= n; i += LANES * VECTOR) {
            vec u[TILE];
#pragma unroll
            for (int a = 0; a < TILE; a++) u[a] = vec_load(X_TYPE, from_q[a] + i);
#pragma unroll
            for (int b = 0; b < TILE; b++) {
                const vec v = vec_load(X_TYPE, from_k[b] + i);
#pragma unroll
                for (int a = 0; a < TILE; a++) sum[a * TILE + b] += u[a] * v;
            }
        }
#if VECTOR > 1
        if (i < n) {
            vec u[TILE];
#pragma unroll
            for (int a = 0; a < TILE; a++) u[a] = vec_load_part(X_TYPE, from_q[a] + i, n - i);
#pragma unroll
            for (int b = 0; b < TILE; b++) {
                const vec v = vec_load_part(X_TYPE, from_k[b] + i, n - i);
#pragma unroll
                for (int a = 0; a < TILE; a++) sum[a * TILE + b] += u[a] * v;
            }
        }
#endif
#if LANES > 1
#pragma unroll
        for (int e = 0; e < TILE * TILE; e++) lanes[e][lane] = vec_sum(sum[e]);
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int e = lane; e < TILE * TILE; e += LANES) {
            const int i_q = row * TILE + e / TILE, i_k = column * TILE + e % TILE;
            float total = 0.0f;
            for (int l = 0; l < LANES; l++) total += lanes[e][l];
            if (i_q < c && i_k < c) scratch[i_q * c + i_k] = total;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
#else
#pragma unroll
        for (int e = 0; e < TILE * TILE; e++) {
            const int i_q = row * TILE + e / TILE, i_k = column * TILE + e % TILE;
            if (i_q < c && i_k < c) scratch[i_q * c + i_k] = vec_sum(sum[e]);
        }
#endif
    }
}

__kernel void attention_total(__global const float *scratch, const int scratch_offset, __global float *sums,
                              const int sums_offset, const int number, const int chunks,
                              const int accumulate, const int run)
{
    const int first = (int)get_global_id(0) * run;
    const int last = min(first + run, number);
    scratch += scratch_offset + (int)get_global_id(1) * chunks * number;
    sums += sums_offset + (int)get_global_id(1) * number;
    for (int i = first; i < last; i += VECTOR) {
        vec sum = 0.0f;
        if (accumulate) sum = vec_load_part(float, sums + i, last - i);
        for (int chunk = 0; chunk < chunks; chunk++)
            sum += vec_load_part(float, scratch + chunk * number + i, last - i);
        vec_store_part(float, sum, sums + i, last - i);
    }
}

__kernel void attention_softmax(__global const float *sums, const int sums_offset,
                                __global const float *temperature, const int temperature_offset,
                                __global float *out, const int out_offset, const int c, const int heads, const int rows)
{
    const int row = get_global_id(0);
    if (row >= rows) return;
    const int head = row / c;        /* of all slices' */
    sums += sums_offset + head * (c * c + 2 * c);
    out += out_offset + row * c;
    __global const float *products = sums + row % c * c;
    __global const float *squares = sums + c * c;
    const float scale = temperature[temperature_offset + head % heads];
    const float norm = max(sqrt(squares[row % c]), 1e-12f);
    squares += c;
    float most = -INFINITY;
    for (int j = 0; j < c; j++) {
        const float value = scale * (products[j] / norm / max(sqrt(squares[j]), 1e-12f));
        most = max(most, value);
        out[j] = value;
    }
    float sum = 0.0f;
    for (int j = 0; j < c; j++) {
        const float value = exp(out[j] - most);
        sum += value;
        out[j] = value;
    }
    for (int j = 0; j < c; j++) out[j] /= sum;
}

__kernel void attention_fold(__global const float *w, const int w_offset, __global const float *softmax_of,
                             const int softmax_offset, __global float *out, const int out_offset, const int c,
                             const int heads)
{
    const int row = get_global_id(1), slice = get_global_id(2), channels = heads * c, vectors = (c + VECTOR - 1) / VECTOR;
    w += w_offset + row * channels;
    out += out_offset + (slice * channels + row) * channels;
    softmax_of += softmax_offset + slice * channels * c;
    for (int v = get_global_id(0); v < heads * vectors; v += get_global_size(0)) {
        const int first = v / vectors * c, j = v % vectors * VECTOR, left = c - j;
        __global const float *from = softmax_of + first * c + j;
        vec sum = 0.0f;
        if (left >= VECTOR)
            for (int i = 0; i < c; i++) sum += w[first + i] * vec_load(float, from + i * c);
        else
            for (int i = 0; i < c; i++) sum += w[first + i] * vec_load_part(float, from + i * c, left);
        vec_store_part(float, sum, out + first + j, left);
    }
}
