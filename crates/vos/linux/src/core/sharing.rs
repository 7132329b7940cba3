//! What keeps programs together (placeholder text replaced below).
