//! Responses, as every part of the front makes them.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;

use super::super::call::Kind;
use super::super::problem::Problem;

/// Makes a response.
pub(super) fn respond(status: u16, kind: Kind, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let value = HeaderValue::from_static(kind.media_type());
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        respond(self.status, Kind::Problem, Body::from(self.to_json()))
    }
}
