package upstream

// The parts of an upstream that continue after a panic in them.
const (
	PartProber     = "prober"
	PartResolver   = "resolver"
	PartPreconnect = "preconnect"
	PartUpstream   = "upstream" // dials, cancel requests, trials of a required upstream
)
