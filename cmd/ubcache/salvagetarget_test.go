package main

import (
	"testing"

	"ubcache/internal/header"
)

// TestSalvageOverNewerData: a device whose header says that it was changed without the SSD has newer data.
func TestSalvageOverNewerData(t *testing.T) {
	f := &salvageFlags{stateDir: t.TempDir()}
	if why := f.missed(nil, nil, &header.Header{Missed: true}); why == "" {
		t.Error("salvage would write over it")
	}
	if why := f.missed(nil, nil, &header.Header{}); why != "" {
		t.Errorf("refused: %s", why)
	}
}
