//! Significance of the two-sample Kolmogorov-Smirnov statistic.
//!
//! As SciPy 1.17 decides (`ks_2samp`, two-sided, method `auto`): exact up to [`EXACT_ROWS`] rows a side, above that the
//! finite-n distribution of the one-sample statistic at the effective size `round(m n / (m + n))`, after Simard and
//! L'Ecuyer, "Computing the two-sided Kolmogorov-Smirnov distribution" (2011).

use statrs::function::gamma::ln_gamma;

/// Rows a side up to which the distribution of the statistic is counted out.
pub const EXACT_ROWS: u64 = 10_000;
/// From this value of `2 d^2 m n / (m + n)` on the two-sample probability is below the smallest double: it is at most e times
/// the exponential of minus that (Wei and Dudley 2012).
const TWO_SAMPLE_ZERO_FROM: f64 = 800.0;
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
    let effective = m as f64 * n as f64 / (m + n) as f64;
    if 2.0 * d * d * effective >= TWO_SAMPLE_ZERO_FROM {
        return 0.0;
    }
    if m.max(n) <= EXACT_ROWS {
        return exact_two_sample(d, m as usize, n as usize);
    }
    // Half to even is how NumPy rounds.
    one_sample_sf(effective.round_ties_even() as u64, d)
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
            for cell in &mut cells {
                *cell *= factor;
            }
            exponent += SCALE_EXPONENT;
        }
        Self { cells, side, exponent }
    }
}

/// Durbin's (1968) matrix form of the distribution, raised to the `n`-th power by squaring (Marsaglia, Tsang, Wang 2003).
fn durbin_cdf(n: u64, d: f64) -> f64 {
    // d = (middle - gap) / n with a whole number and a gap below one
    let scaled = n as f64 * d;
    let middle = scaled.ceil() as usize;
    let gap = middle as f64 - scaled;
    let side = 2 * middle - 1;
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
                cell -= gap.powi(row as i32 + 1);
            }
            if row == side - 1 {
                cell -= gap.powi((side - column) as i32);
            }
            if column == 0 && row == side - 1 && 2.0 * gap > 1.0 {
                cell += (2.0 * gap - 1.0).powi(side as i32);
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
    let cell = power.cells[(middle - 1) * side + middle - 1];
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
    let exponent = -p2 / (8.0 * z2);
    if exponent < -700.0 {
        return 0.0;
    }
    let mut series = [0.0; 4];
    let terms = (16.0 * z / PI).ceil() as i32;
    for i in 1..=terms {
        let m2 = f64::from(2 * i - 1).powi(2);
        let weight = (exponent * m2).exp();
        series[0] += weight;
        series[1] += weight * (p2 / 4.0 * m2 - z2);
        series[2] += weight
            * (6.0 * z.powi(6)
                + 2.0 * z.powi(4)
                + p2 / 4.0 * (2.0 * z.powi(4) - 5.0 * z2) * m2
                + p4 / 16.0 * (1.0 - 2.0 * z2) * m2.powi(2));
        series[3] += weight
            * (p6 / 64.0 * (5.0 - 30.0 * z2) * m2.powi(3)
                + p4 / 16.0 * (212.0 * z.powi(4) - 60.0 * z2) * m2.powi(2)
                + p2 / 4.0 * (135.0 * z.powi(4) - 96.0 * z.powi(6)) * m2
                - 30.0 * z.powi(6)
                - 90.0 * z.powi(8));
    }
    series[0] /= z;
    series[1] /= 6.0 * z.powi(4);
    series[2] /= 72.0 * z.powi(7);
    series[3] /= 6_480.0 * z.powi(10);
    for i in 1..=terms {
        let i2 = f64::from(i).powi(2);
        let weight = (4.0 * exponent * i2).exp() * i2 * p2;
        series[2] -= weight / (36.0 * z.powi(3));
        series[3] += weight * (3.0 * z2 - p2 * i2) / (216.0 * z.powi(6));
    }
    (2.0 * PI).sqrt() * (series[0] + series[1] / n.sqrt() + series[2] / n + series[3] / (n * n.sqrt()))
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
            (10, 0.95, 1.953_125_000_000_017_2e-13),
            (10, 0.6, 0.000_568_167_200_000_000_3),
            (50, 0.015, 1.0),
            (50, 0.1, 0.662_311_270_465_818_6),
            (50, 0.2, 0.031_438_777_769_532_41),
            (140, 0.15, 0.003_249_560_441_510_170_3),
            (140, 0.2, 2.198_156_330_220_022_2e-05),
            (141, 0.1, 0.111_284_455_164_679_44),
            (1000, 0.01, 0.999_949_674_537_061_1),
            (1000, 0.03, 0.322_690_214_391_463_6),
            (1000, 0.05, 0.013_012_074_781_090_332),
            (5000, 0.02, 0.036_139_413_953_256_37),
            (50_000, 0.0003, 1.0),
            (50_000, 0.005, 0.163_533_634_924_348_03),
            (500_000, 0.001, 0.698_980_144_366_366_1),
            (500_000, 0.002, 0.036_582_179_671_620_585),
            (500_000, 0.02, 3.648_196_655_176_420_4e-174),
            (500_000, 0.03, 0.0),
        ];
        for &(n, d, p) in expected {
            near(one_sample_sf(n, d), p, 1e-7);
        }
    }

    /// `scipy.stats.ks_2samp(..., method="exact")` of SciPy 1.17.1, through its function of the sizes and the statistic.
    #[test]
    fn two_sample_probabilities_equal_scipy() {
        let expected: &[(u64, u64, f64, f64)] = &[
            (3, 3, 0.666_666_666_666_666_6, 0.6),
            (5, 7, 0.571_428_571_428_571_4, 0.237_373_737_373_737_38),
            (10, 10, 0.5, 0.167_821_342_743_943_34),
            (100, 100, 0.12, 0.469_506_448_503_778),
            (100, 80, 0.1025, 0.701_235_161_413_431_7),
            (1000, 999, 0.05, 0.155_920_650_004_263_33),
            (9973, 7000, 0.017_800_002_864_878_03, 0.145_311_065_187_589_38),
            (1000, 10, 0.6, 0.000_626_648_633_955_709_7),
            (10_000, 10_000, 0.02, 0.036_628_611_140_792_58),
        ];
        for &(m, n, d, p) in expected {
            near(two_sample_p_value(d, m, n), p, 1e-9);
            near(two_sample_p_value(d, n, m), p, 1e-9);
        }
    }

    #[test]
    fn bounds() {
        near(two_sample_p_value(0.0, 5, 7), 1.0, 0.0);
        near(two_sample_p_value(0.3, 0, 7), 1.0, 0.0);
        near(two_sample_p_value(1.0, 20_000, 20_000), 0.0, 0.0);
        near(two_sample_p_value(0.5, 10_000, 9_999), 0.0, 0.0);
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
