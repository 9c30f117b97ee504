package daemon

import (
	"ubcache/attrs"
	"ubcache/attrs/shm"
)

// supported are the attributes that the engine acts on.
var supported = map[attrs.ID]bool{attrs.IDHint: true, attrs.IDMode: true}

// capabilities say, for each attribute that this program knows, whether the cache acts on it.
func capabilities() []byte {
	var list []shm.Capability
	for _, a := range attrs.Attributes() {
		list = append(list, shm.Capability{ID: a.ID, Supported: supported[a.ID]})
	}
	return shm.AppendCapabilities(nil, list)
}
