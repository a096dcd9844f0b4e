/** Masks over a picture, from soft maps of 8 bits: what Preview Segmentation computes, computed in the page. No ComfyUI here. */

const FAR = 1e20

/** Squared distances along one line to the nearest finite value of `f` (Felzenszwalb and Huttenlocher 2012). */
function nearest(f, length, out, places, bounds) {
  let k = -1
  for (let q = 0; q < length; q++) {
    if (f[q] >= FAR) continue
    let at = -Infinity
    while (k >= 0) {
      const p = places[k]
      at = (f[q] + q * q - f[p] - p * p) / (2 * (q - p))
      if (at > bounds[k]) break
      k--
    }
    places[++k] = q
    bounds[k] = k ? at : -Infinity
  }
  if (k < 0) return out.fill(FAR, 0, length)
  for (let q = 0, j = 0; q < length; q++) {
    while (j < k && bounds[j + 1] < q) j++
    out[q] = f[places[j]] + (q - places[j]) ** 2
  }
  return out
}

/** Squared distance of each pixel to the nearest one that is inside. */
function distances(mask, width, height) {
  const field = Float64Array.from(mask, inside => (inside ? 0 : FAR))
  const most = Math.max(width, height)
  const line = new Float64Array(most), out = new Float64Array(most)
  const places = new Int32Array(most), bounds = new Float64Array(most)
  const pass = (start, step, length) => {
    for (let i = 0; i < length; i++) line[i] = field[start + i * step]
    nearest(line, length, out, places, bounds)
    for (let i = 0; i < length; i++) field[start + i * step] = out[i]
  }
  for (let x = 0; x < width; x++) pass(x, width, height)
  for (let y = 0; y < height; y++) pass(y * width, 1, width)
  return field
}

/** A mask of 0 and 1, grown by a disc of `radius` pixels; shrunk below 0. What lies beyond the edge changes nothing. */
export function grown(mask, width, height, radius) {
  if (!radius) return mask
  const ground = radius > 0 ? mask : mask.map(inside => 1 - inside)
  const reach = radius * radius + 1e-6
  const disc = distances(ground, width, height)
  return mask.map((_, i) => Number(disc[i] <= reach) ^ Number(radius < 0))
}

/** 1 where a probability in 0..255 is over the threshold in 0..1. */
export function over(map, threshold) {
  return map.map(value => Number(value / 255 > threshold))
}

/** What a phrase's line says beside its name, as the report says it. */
export function state(phrase, share, calibrated) {
  const score = `score ${phrase.score.toFixed(2)}${calibrated ? "" : " (not calibrated)"}`
  if (calibrated && !phrase.found) return `not found, ${score}`
  if (!share) return `nothing over the threshold, ${score}`
  const size = share >= 0.001 ? `${(100 * share).toFixed(1)} %` : "under 0.1 %"
  return `${calibrated ? "found" : "found?"}, ${size}, ${score}`
}

/** Black or white: which is further from a colour in 0..255. */
function against(hue) {
  const distance = end => {
    const red = (hue[0] + end) / 510
    const [r, g, b] = hue.map(value => ((value - end) / 255) ** 2)
    return (2 + red) * r + 4 * g + (3 - red) * b
  }
  return distance(0) > distance(255) ? [0, 0, 0] : [255, 255, 255]
}

/** Pixels (RGBA) of `picture` with each mask in its hue, later ones on top, then an outline around each. */
export function overlaid(picture, masks, hues, opacity, width, height) {
  const out = Float32Array.from(picture)
  const line = Math.max(1, Math.round(Math.min(width, height) / 300))
  masks.forEach((mask, p) => {
    for (let i = 0; i < mask.length; i++)
      if (mask[i]) for (let c = 0; c < 3; c++) out[4 * i + c] += (hues[p][c] - out[4 * i + c]) * opacity
  })
  masks.forEach((mask, p) => {
    if (!mask.some(Boolean)) return
    const inner = grown(mask, width, height, -line), outer = grown(mask, width, height, line), edge = against(hues[p])
    for (let i = 0; i < mask.length; i++) {
      const colour = mask[i] && !inner[i] ? hues[p] : outer[i] && !mask[i] ? edge : null
      if (colour) for (let c = 0; c < 3; c++) out[4 * i + c] = colour[c]
    }
  })
  return Uint8ClampedArray.from(out)
}
