//! Significance of the two-sample Kolmogorov-Smirnov statistic.
//!
//! As SciPy 1.17 decides (`ks_2samp`, two-sided, method `auto`): exact up to [`EXACT_ROWS`] rows a side, above that the
//! finite-n distribution of the one-sample statistic at the effective size `round(m n / (m + n))`, after Simard and
//! L'Ecuyer, "Computing the two-sided Kolmogorov-Smirnov distribution" (2011).

use statrs::function::gamma::ln_gamma;

/// Rows a side up to which the distribution of the statistic is counted out.
pub const EXACT_ROWS: u64 = 10_000;
/// Up to this size of a sample Durbin's matrix is used for all of the middle range.
const SMALL_SAMPLE: u64 = 140;
/// Above these values of `n d^2` twice the one-sided probability is exact to double precision.
const ONE_SIDED_FROM_SMALL: f64 = 4.0;
const ONE_SIDED_FROM_LARGE: f64 = 2.2;
/// From this value of `n d^2` on the probability is below the smallest double.
const ZERO_FROM: f64 = 370.0;
/// Where Durbin's matrix stays small enough to be worth its exactness.
const MATRIX_MAX_SAMPLE: u64 = 100_000;
const MATRIX_MAX_N_D15: f64 = 1.4;
/// Matrices are rescaled by this power of two before they overflow.
const SCALE_EXPONENT: i32 = 400;

/// Probability that two samples of `m` and `n` values from one continuous distribution differ by `d` or more.
pub fn two_sample_p_value(d: f64, m: u64, n: u64) -> f64 {
    if m == 0 || n == 0 {
        return 1.0;
    }
    if m.max(n) <= EXACT_ROWS {
        return exact_two_sample(d, m as usize, n as usize);
    }
    let (m, n) = (m as f64, n as f64);
    // Half to even is how NumPy rounds.
    one_sample_sf((m * n / (m + n)).round_ties_even() as u64, d)
}

/// Share of lattice paths from (0, 0) to (m, n) that touch `|x / m - y / n| >= d`.
fn exact_two_sample(d: f64, m: usize, n: usize) -> f64 {
    let divisor = gcd(m, n);
    let (step_x, step_y) = ((n / divisor) as i64, (m / divisor) as i64);
    let limit = (d * (step_x as f64) * m as f64).round() as i64;
    if limit == 0 {
        return 1.0;
    }
    // outside[y] is, for the current x, the share of the paths to (x, y) that touched the limit. The last step of a path
    // to (x, y) came from the left with probability x / (x + y). Cells at or beyond the limit are 1 by definition; only
    // the band between the two limits is visited.
    let mut outside = vec![1.0_f64; n + 1];
    for x in 0..=m {
        let along = x as i64 * step_x;
        let first = (along - limit).div_euclid(step_y) + 1;
        let first = first.clamp(0, n as i64 + 1) as usize;
        let last = (along + limit - 1).div_euclid(step_y).min(n as i64) as usize;
        if first > 0 {
            outside[first - 1] = 1.0;
        }
        for y in first..=last {
            outside[y] = match (x, y) {
                (0, 0) => 0.0,
                (0, _) => outside[y - 1],
                (_, 0) => outside[0],
                _ => {
                    let (from_left, from_below) = (x as f64, y as f64);
                    (from_left * outside[y] + from_below * outside[y - 1]) / (from_left + from_below)
                }
            };
        }
    }
    outside[n].clamp(0.0, 1.0)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Probability that the two-sided one-sample statistic of `n` values is over `d`.
pub fn one_sample_sf(n: u64, d: f64) -> f64 {
    if n == 0 || d <= 0.0 {
        return 1.0;
    }
    if d >= 1.0 {
        return 0.0;
    }
    let size = n as f64;
    let t = size * d;
    if t <= 0.5 {
        return 1.0;
    }
    let cut = t * d;
    let probability = if t <= 1.0 {
        let log = ln_gamma(size + 1.0) - size * size.ln() + size * (2.0 * t - 1.0).ln();
        1.0 - log.exp()
    } else if t >= size - 1.0 {
        2.0 * (1.0 - d).powf(size)
    } else if cut >= ZERO_FROM {
        0.0
    } else if d >= 0.5 {
        2.0 * one_sided_sf(n, d)
    } else if n <= SMALL_SAMPLE {
        if cut <= ONE_SIDED_FROM_SMALL {
            1.0 - durbin_cdf(n, d)
        } else {
            2.0 * one_sided_sf(n, d)
        }
    } else if cut >= ONE_SIDED_FROM_LARGE {
        2.0 * one_sided_sf(n, d)
    } else if n <= MATRIX_MAX_SAMPLE && size * d.powf(1.5) <= MATRIX_MAX_N_D15 {
        1.0 - durbin_cdf(n, d)
    } else {
        1.0 - pelz_good_cdf(size, d)
    };
    probability.clamp(0.0, 1.0)
}

/// The one-sided probability (Smirnov 1944): `d * sum over j of C(n, j) (d + j/n)^(j-1) (1 - d - j/n)^(n-j)`; all terms are
/// positive.
fn one_sided_sf(n: u64, d: f64) -> f64 {
    let size = n as f64;
    let log_factorial = ln_gamma(size + 1.0);
    let last = (size * (1.0 - d)).floor() as u64;
    let mut sum = 0.0;
    for j in 0..=last {
        let part = j as f64;
        let (near, far) = (d + part / size, 1.0 - d - part / size);
        if far <= 0.0 {
            break;
        }
        let log_choose = log_factorial - ln_gamma(part + 1.0) - ln_gamma(size - part + 1.0);
        sum += (log_choose + (part - 1.0) * near.ln() + (size - part) * far.ln()).exp();
    }
    d * sum
}

/// A matrix times a power of two.
#[derive(Clone)]
struct Scaled {
    cells: Vec<f64>,
    side: usize,
    exponent: i32,
}

impl Scaled {
    fn times(&self, other: &Self) -> Self {
        let side = self.side;
        let mut cells = vec![0.0; side * side];
        for row in 0..side {
            for inner in 0..side {
                let factor = self.cells[row * side + inner];
                if factor == 0.0 {
                    continue;
                }
                for column in 0..side {
                    cells[row * side + column] += factor * other.cells[inner * side + column];
                }
            }
        }
        let mut exponent = self.exponent + other.exponent;
        let largest = cells.iter().copied().fold(0.0, f64::max);
        if largest > f64::from(SCALE_EXPONENT).exp2() {
            let factor = f64::from(-SCALE_EXPONENT).exp2();
            cells.iter_mut().for_each(|cell| *cell *= factor);
            exponent += SCALE_EXPONENT;
        }
        Self { cells, side, exponent }
    }
}

/// Durbin's (1968) matrix form of the distribution, raised to the `n`-th power by squaring (Marsaglia, Tsang, Wang 2003).
fn durbin_cdf(n: u64, d: f64) -> f64 {
    let t = n as f64 * d;
    let k = t.ceil() as usize;
    let h = k as f64 - t;
    let side = 2 * k - 1;
    let mut inverse_factorials = vec![1.0; side + 1];
    for i in 1..=side {
        inverse_factorials[i] = inverse_factorials[i - 1] / i as f64;
    }
    // Ones on and below the diagonal and just above it; the first column and the last row lose the part that lies beyond
    // the limits; every cell is divided by the factorial of its distance.
    let mut cells = vec![0.0; side * side];
    for row in 0..side {
        for column in 0..side.min(row + 2) {
            let distance = row + 1 - column;
            let mut cell = 1.0;
            if column == 0 {
                cell -= h.powi(row as i32 + 1);
            }
            if row == side - 1 {
                cell -= h.powi((side - column) as i32);
            }
            if column == 0 && row == side - 1 && 2.0 * h > 1.0 {
                cell += (2.0 * h - 1.0).powi(side as i32);
            }
            cells[row * side + column] = cell * inverse_factorials[distance];
        }
    }
    let mut base = Scaled {
        cells,
        side,
        exponent: 0,
    };
    let mut power: Option<Scaled> = None;
    let mut left = n;
    while left > 0 {
        if left % 2 == 1 {
            power = Some(power.map_or_else(|| base.clone(), |power| power.times(&base)));
        }
        left /= 2;
        if left > 0 {
            base = base.times(&base);
        }
    }
    let Some(power) = power else { return 0.0 };
    let cell = power.cells[(k - 1) * side + k - 1];
    if cell <= 0.0 {
        return 0.0;
    }
    // times n! / n^n
    let size = n as f64;
    let log_factor = ln_gamma(size + 1.0) - size * size.ln();
    (cell.ln() + f64::from(power.exponent) * std::f64::consts::LN_2 + log_factor).exp()
}

/// Pelz and Good's (1976) expansion of the distribution in powers of `1 / sqrt(n)`.
fn pelz_good_cdf(n: f64, d: f64) -> f64 {
    use std::f64::consts::PI;
    let z = n.sqrt() * d;
    let z2 = z * z;
    let (p2, p4, p6) = (PI.powi(2), PI.powi(4), PI.powi(6));
    let q = -p2 / (8.0 * z2);
    if q < -700.0 {
        return 0.0;
    }
    let mut k = [0.0; 4];
    let terms = (16.0 * z / PI).ceil() as i32;
    for i in 1..=terms {
        let m2 = f64::from(2 * i - 1).powi(2);
        let weight = (q * m2).exp();
        k[0] += weight;
        k[1] += weight * (p2 / 4.0 * m2 - z2);
        k[2] += weight
            * (6.0 * z.powi(6)
                + 2.0 * z.powi(4)
                + p2 / 4.0 * (2.0 * z.powi(4) - 5.0 * z2) * m2
                + p4 / 16.0 * (1.0 - 2.0 * z2) * m2.powi(2));
        k[3] += weight
            * (p6 / 64.0 * (5.0 - 30.0 * z2) * m2.powi(3)
                + p4 / 16.0 * (212.0 * z.powi(4) - 60.0 * z2) * m2.powi(2)
                + p2 / 4.0 * (135.0 * z.powi(4) - 96.0 * z.powi(6)) * m2
                - 30.0 * z.powi(6)
                - 90.0 * z.powi(8));
    }
    k[0] /= z;
    k[1] /= 6.0 * z.powi(4);
    k[2] /= 72.0 * z.powi(7);
    k[3] /= 6_480.0 * z.powi(10);
    for i in 1..=terms {
        let i2 = f64::from(i).powi(2);
        let weight = (4.0 * q * i2).exp() * i2 * p2;
        k[2] -= weight / (36.0 * z.powi(3));
        k[3] += weight * (3.0 * z2 - p2 * i2) / (216.0 * z.powi(6));
    }
    let series = k[0] + k[1] / n.sqrt() + k[2] / n + k[3] / (n * n.sqrt());
    (2.0 * PI).sqrt() * series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f64, expected: f64, relative: f64) {
        assert!(
            (value - expected).abs() <= relative * expected.abs() + 1e-300,
            "{value:e} is not {expected:e}"
        );
    }

    /// `scipy.stats.kstwo.sf(d, n)` of SciPy 1.17.1.
    #[test]
    fn one_sample_probabilities_equal_scipy() {
        let expected: &[(u64, f64, f64)] = &[
            (5, 0.15, 0.9988),
            (10, 0.95, 1.9531250000000172e-13),
            (10, 0.6, 0.0005681672000000003),
            (50, 0.015, 1.0),
            (50, 0.1, 0.6623112704658186),
            (50, 0.2, 0.03143877776953241),
            (140, 0.15, 0.0032495604415101703),
            (140, 0.2, 2.1981563302200222e-05),
            (141, 0.1, 0.11128445516467944),
            (1000, 0.01, 0.9999496745370611),
            (1000, 0.03, 0.3226902143914636),
            (1000, 0.05, 0.013012074781090332),
            (5000, 0.02, 0.03613941395325637),
            (50000, 0.0003, 1.0),
            (50000, 0.005, 0.16353363492434803),
            (500000, 0.001, 0.6989801443663661),
            (500000, 0.002, 0.036582179671620585),
            (500000, 0.02, 3.6481966551764204e-174),
            (500000, 0.03, 0.0),
        ];
        for &(n, d, p) in expected {
            near(one_sample_sf(n, d), p, 1e-7);
        }
    }

    /// `scipy.stats.ks_2samp(..., method="exact")` of SciPy 1.17.1, through its function of the sizes and the statistic.
    #[test]
    fn two_sample_probabilities_equal_scipy() {
        let expected: &[(u64, u64, f64, f64)] = &[
            (3, 3, 0.6666666666666666, 0.6),
            (5, 7, 0.5714285714285714, 0.23737373737373738),
            (10, 10, 0.5, 0.16782134274394334),
            (100, 100, 0.12, 0.469506448503778),
            (100, 80, 0.1025, 0.7012351614134317),
            (1000, 999, 0.05, 0.15592065000426333),
            (9973, 7000, 0.01780000286487803, 0.14531106518758938),
            (1000, 10, 0.6, 0.0006266486339557097),
            (10000, 10000, 0.02, 0.03662861114079258),
        ];
        for &(m, n, d, p) in expected {
            near(two_sample_p_value(d, m, n), p, 1e-9);
            near(two_sample_p_value(d, n, m), p, 1e-9);
        }
    }

    #[test]
    fn bounds() {
        assert_eq!(two_sample_p_value(0.0, 5, 7), 1.0);
        assert_eq!(two_sample_p_value(0.3, 0, 7), 1.0);
        assert_eq!(two_sample_p_value(1.0, 20_000, 20_000), 0.0);
        near(two_sample_p_value(1.0, 2, 2), 1.0 / 3.0, 1e-12);
    }

    #[test]
    fn the_exact_and_the_asymptotic_branch_meet() {
        for d in [0.01, 0.015, 0.02, 0.03] {
            let exact = two_sample_p_value(d, EXACT_ROWS, EXACT_ROWS);
            let asymptotic = two_sample_p_value(d, EXACT_ROWS + 1, EXACT_ROWS + 1);
            assert!((exact - asymptotic).abs() < 0.01, "{d}: {exact} {asymptotic}");
        }
    }
}
