package sim

import "testing"

// A write finds the rest of a block lost, and the SSD fails another block of it, too: its bucket is used no more.
func TestFailedWriteBesideALostMerge(t *testing.T) {
	sc := Scenario{Name: "failed write beside a lost merge", Script: `write 0 8; write 480 240; write 960 240; flush; hurt 3; write 4 100; drain on; pass 500
		12 times {write 960 480; write 480 480; write 8 472}
		read 0 512; flush`, Config: func(c *Config) { c.DeviceBytes = 768 << 10 }}
	for at := 1; at < 80; at++ {
		w := &sweep{sc: &sc, checksums: true, what: sweepError, at: at}
		if _, _, err := w.play(nil); err != nil {
			t.Errorf("at %d: %v", at, err)
		}
	}
}
