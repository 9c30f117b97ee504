package daemon

import (
	"ubcache/attrs"
	"ubcache/attrs/shm"
)

// capabilities say, for each attribute that this program knows, whether the cache acts on it. Now it
// does on all; an engine that knows more than it acts on says so here.
func capabilities() []byte {
	var list []shm.Capability
	for _, a := range attrs.Attributes() {
		list = append(list, shm.Capability{ID: a.ID, Supported: true})
	}
	return shm.AppendCapabilities(nil, list)
}
