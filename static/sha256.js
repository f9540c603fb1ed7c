// SHA-256 that can be fed part by part (FIPS 180-4): the browser's own needs the whole file at once, and HTTPS.
const primes = [];
for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32);
const K = new Int32Array(primes.map((p) => fraction(Math.cbrt(p))));
const START = new Int32Array(primes.slice(0, 8).map((p) => fraction(Math.sqrt(p))));

export class Sha256 {
  constructor() { this.state = START.slice(); this.rest = new Uint8Array(0); this.length = 0; }

  update(bytes) {
    this.length += bytes.length;
    if (this.rest.length) {
      const joined = new Uint8Array(this.rest.length + bytes.length);
      joined.set(this.rest);
      joined.set(bytes, this.rest.length);
      bytes = joined;
    }
    const whole = bytes.length - bytes.length % 64;
    this.blocks(bytes, whole);
    this.rest = bytes.slice(whole);
    return this;
  }

  blocks(bytes, end) {                     // sums are cut to 32 bits at once, so that they never become floats
    const w = new Int32Array(64), s = this.state;
    for (let at = 0; at < end; at += 64) {
      for (let i = 0, j = at; i < 16; i++, j += 4) w[i] = bytes[j] << 24 | bytes[j + 1] << 16 | bytes[j + 2] << 8 | bytes[j + 3];
      for (let i = 16; i < 64; i++) {
        const x = w[i - 15], y = w[i - 2];
        const one = (x >>> 7 | x << 25) ^ (x >>> 18 | x << 14) ^ x >>> 3, two = (y >>> 17 | y << 15) ^ (y >>> 19 | y << 13) ^ y >>> 10;
        w[i] = (w[i - 16] + w[i - 7] | 0) + (one + two | 0) | 0;
      }
      let a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
      for (let i = 0; i < 64; i++) {
        const mixed = (e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7), chosen = e & f ^ ~e & g;
        const one = (h + mixed | 0) + (chosen + (K[i] + w[i] | 0) | 0) | 0;
        const two = ((a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10)) + (a & b ^ a & c ^ b & c) | 0;
        h = g; g = f; f = e; e = d + one | 0; d = c; c = b; b = a; a = one + two | 0;
      }
      s[0] += a; s[1] += b; s[2] += c; s[3] += d; s[4] += e; s[5] += f; s[6] += g; s[7] += h;
    }
  }

  hex() {                                  // of what came so far; more may follow
    const tail = new Uint8Array(this.rest.length < 56 ? 64 : 128), view = new DataView(tail.buffer), copy = new Sha256();
    tail.set(this.rest);
    tail[this.rest.length] = 128;
    view.setUint32(tail.length - 8, Math.floor(this.length / 2 ** 29));
    view.setUint32(tail.length - 4, this.length * 8 % 2 ** 32);
    copy.state = this.state.slice();
    copy.blocks(tail, tail.length);
    return [...copy.state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }
}
